"""DeepSeek's folder format: names, configuration, weights, and a manifest that catches damage."""

from core_model.checkpoint.folder import load_folder, load_weights, save_folder
from core_model.checkpoint.manifest import verify_manifest, write_manifest

__all__ = ["load_folder", "load_weights", "save_folder", "verify_manifest", "write_manifest"]
