"""From records to tables, figures and a report; imports no torch."""

import bench  # noqa: F401 - first, so that it refuses files that hide what is imported next
