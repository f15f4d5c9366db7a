"""DeepSeek's folder format: names, configuration, weights, and a manifest that catches damage."""

from core_model.checkpoint.folder import load_folder, load_weights, save_folder

__all__ = ["load_folder", "load_weights", "save_folder"]
