# What other processes run: they need devices, or peers, that this one does not have.
collect_ignore_glob = ["jobs.py", "processes.py", "*_worker.py", "*_on_*_devices.py"]
