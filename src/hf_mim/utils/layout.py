"""Names of the files and folders that this package saves."""

# Next to a pre-training model: the network that makes its targets, and the centers of iBOT's teacher.
TEACHER_FOLDER, CENTERS_FILE = "teacher", "centers.safetensors"
# In `teacher/`: the stage of a dBOT teacher, or a reference to the frozen target network. In a finished run: metrics.
STAGE_FILE, REFERENCE_FILE, METRICS_FILE = "stage.json", "reference.json", "metrics.json"
