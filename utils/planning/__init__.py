"""What a run needs and what a machine makes of it, before anything is loaded: `--dry_run`."""

from utils.planning.plan import Plan, Question, make_plan
from utils.planning.report import as_json, as_text

__all__ = ["Plan", "Question", "as_json", "as_text", "make_plan"]
