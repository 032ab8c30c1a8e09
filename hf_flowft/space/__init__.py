"""A page that shows a fine-tune: base and result drawn from the same noise. `write_space` makes the folder, its app.py opens the page.

Gradio is an optional extra (`pip install hf_flowft[space]`) and is loaded by `build_page` only.
"""

from .comparison import Comparison, Drawing
from .page import build_page, launch
from .writing import write_space

__all__ = ["Comparison", "Drawing", "build_page", "launch", "write_space"]
