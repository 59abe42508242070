"""A schedule for beat that a clock which is set back does not stop."""

from datetime import datetime

from celery.schedules import schedstate, schedule


class Every(schedule):
    """Every so many seconds. Celery's own would wait until the clock has come back to where it was."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        state = super().is_due(last_run_at)
        return schedstate(True, self.seconds) if state.next > self.seconds else state
