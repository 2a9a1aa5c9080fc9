"""Class names as constants: a partial list file must not shift names against labels."""
