"""DeepSeek's folder format: names, configuration, weights, conversion, and a manifest that catches damage."""

from core_model.checkpoint.convert import Conversion, convert_folder
from core_model.checkpoint.folder import load_folder, load_weights, save_folder
from core_model.checkpoint.storage import Storage

__all__ = ["Conversion", "Storage", "convert_folder", "load_folder", "load_weights", "save_folder"]
