"""Built-in text tasks, rebuilt from pinned packages and kept in a cache."""

from lit_wsl.training.tasks.prepare import TASKS as TASKS
from lit_wsl.training.tasks.prepare import cache_directory as cache_directory
from lit_wsl.training.tasks.prepare import find_task as find_task
from lit_wsl.training.tasks.prepare import prepare_task as prepare_task
from lit_wsl.training.tasks.prepare import prepare_tasks as prepare_tasks
from lit_wsl.training.tasks.task import SPLITS as SPLITS
from lit_wsl.training.tasks.task import PreparedTask as PreparedTask
from lit_wsl.training.tasks.task import Split as Split
from lit_wsl.training.tasks.task import TextTask as TextTask
