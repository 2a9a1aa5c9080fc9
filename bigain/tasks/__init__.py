"""Classification and generation: Lightning modules, and the callbacks that write their logs and results."""
