"""Names of the files in a published folder; those that timm and the hub look for."""

from ilmconvert.tensor_file import FOLDER_FILE

WEIGHTS = FOLDER_FILE
CONFIG = "config.json"
CARD = "README.md"
