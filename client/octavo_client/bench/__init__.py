"""What `octavo bench` is made of: contenders in processes of their own, workloads, floors, results."""
