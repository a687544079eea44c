"""Where the work is done: in this process, by worker processes, or by a cluster; and what it takes."""
