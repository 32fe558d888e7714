"""What a job came to."""

from fastapi import APIRouter, Response

from service.answers import Results, results_answer
from service.depends import JobId, Store
from service.errors import RETRY_AFTER_SECONDS

router = APIRouter(prefix="/v1/jobs/{job_id}/results", tags=["results"])


@router.get("")
def results(job_id: JobId, store: Store, response: Response) -> Results:
    """Evaluations so far, the best on val, and the final one on test; Retry-After until `complete`."""
    job = store.reader.job(job_id)
    answer = results_answer(job, store.reader.evaluations(job_id), store.reader.checkpoints(job_id))
    if not answer.complete:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return answer
