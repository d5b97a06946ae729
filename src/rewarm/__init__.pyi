from rewarm.api.callback import Callback as Callback
from rewarm.api.frames import read_runs as read_runs
from rewarm.api.scheduler import LRScheduler as LRScheduler
from rewarm.schedules import ScheduleSpec as ScheduleSpec
from rewarm.schedules import lr as lr
from rewarm.schedules import lr_curve as lr_curve

__version__: str
