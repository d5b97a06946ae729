"""Loss laws: fitted on measured runs, they predict the loss curves of learning-rate schedules not yet run."""
