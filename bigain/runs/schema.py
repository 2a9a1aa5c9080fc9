"""What writers and readers of a run's files agree on: versions, names, and keys with a meaning."""

from __future__ import annotations

# Of results.json.
RESULTS_VERSION = 1

RESPONSE_FILE = "frequency_response.json"
RESPONSE_VERSION = 1

# In identity.json, which images are evaluated; what is computed of an image does not depend on the others.
CHOOSE_IMAGES = frozenset(f"data.init_args.{name}" for name in ("images", "limit", "per_class", "subset"))
