"""Demonstrations of robots: LeRobotDatasets read and written, and the windows a policy learns from."""

from .config import RobotConfig
from .lerobot import open_lerobot, read_rows
from .loader import RobotData, load_robot, window_units
from .windows import Windows, frame_offsets, windows
from .writer import write_lerobot

__all__ = [
    "RobotConfig",
    "RobotData",
    "Windows",
    "frame_offsets",
    "load_robot",
    "open_lerobot",
    "read_rows",
    "window_units",
    "windows",
    "write_lerobot",
]
