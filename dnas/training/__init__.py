"""One net trained and measured; schedules and derived seeds."""
