"""Execution of the steps of a run: in this process, in worker processes or on a cluster; and cost estimates."""
