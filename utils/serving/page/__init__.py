"""The page: what it says, how it looks, and what its buttons do."""

import os

# Gradio reads these when a page is made. It calls home otherwise, and after each call it computes
# statistics of the last 10000 that nobody is shown.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
