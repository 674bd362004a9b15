"""The names that models have in every saved folder of this package."""

# Also the families of the converters.
MODEL_TYPES = ("ibot", "ibot_swin", "beitv2", "vqkd", "dbot")
# Beside a pre-training model: the network that makes its targets, and the centres of iBOT's.
TEACHER_FOLDER, CENTERS_FILE = "teacher", "centers.safetensors"
# In `teacher/`: the stage of a dBOT teacher, or which frozen network was the target. In a finished run: its figures.
STAGE_FILE, REFERENCE_FILE, METRICS_FILE = "stage.json", "reference.json", "metrics.json"
