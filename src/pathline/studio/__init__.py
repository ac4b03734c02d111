"""The studio: a page in the browser for sampling, comparing, editing and watching.

It calls what is public elsewhere and adds nothing to it. `serve` opens it; `jobs` (a queue whose
jobs can be stopped), `limits`, `door` (which requests come in) and `uploads` (what a picture from
outside may be) keep it standing; `views` draws; `work` has one module a tab; `page` is the only
part that knows gradio.
"""

from pathline.studio.limits import Limits
from pathline.studio.server import serve

__all__ = ["Limits", "serve"]
