"""Public data as tasks or as trajectories, read from a directory that the user names; none of it is shipped."""
