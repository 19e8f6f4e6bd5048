"""Jobs of a profile: their names are keys of the log of finished work."""

from stic.compiler.importance.jobs import LossJob


def test_jobs_name_what_they_evaluate() -> None:
    job = LossJob(((4, 2), (0, 0)))
    assert job.name == "loss 4,2/0,0"
    assert job.first(((4, 2), (4, 4))) == 1 and job.first(((4, 4), (0, 0))) == 0
