"""Records of classified images, for tests of logs and columns."""

from bigain.runs.records import ImageRecord

RECORD = ImageRecord(
    image_id="images/pug_3.jpg",
    label=25,
    prediction=2,
    classes=[0, 2, 2],
    trials=[1, 1, 0],
    timesteps=[750, 750, 250],
    errors=[0.5, 0.25, 0.75],
    survivors=[[0, 2], [2]],
    seconds=1.5,
)


def record(image_id="a", classes=(), trials=(), timesteps=(), errors=(), survivors=(), label=0, prediction=0):
    return ImageRecord(image_id, label, prediction, classes, trials, timesteps, errors, survivors, 0.5)


def read_back(value):
    return ImageRecord.from_json(value.to_json())
