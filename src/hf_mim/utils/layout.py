"""The names that models have in every saved folder of this package."""

# Also the families of the converters.
MODEL_TYPES = ("ibot", "ibot_swin", "beitv2", "vqkd", "dbot")
# Beside a pre-training model: the network that makes its targets, and the centres of iBOT's.
TEACHER_FOLDER, CENTERS_FILE = "teacher", "centers.safetensors"
