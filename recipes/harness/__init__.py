"""What every training task shares: data, schedules, callbacks."""
