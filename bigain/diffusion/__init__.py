"""Pure functions of the diffusion classifier: noising, trials, elimination, schedules."""
