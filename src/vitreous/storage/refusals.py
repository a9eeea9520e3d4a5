"""What a server's answer means: refused for good, or worth another try.

obstore's own texts quote the server's answer, which for wrong keys repeats the access key; only the HTTP status and
the S3 error code are taken from them.
"""

import re
from dataclasses import dataclass

from vitreous.core.errors import LocationError
from vitreous.storage.location import Location

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_WRONG_KEYS = {"InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_RETRIED_STATUS = {408, 425, 429}
_KEYS_REMEDY = {
    "s3": "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) or AWS_PROFILE, and that these keys "
    "may list and read the bucket; for a public bucket set AWS_SKIP_SIGNATURE=true.",
    "gs": "Check GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, and that this account may list and read "
    "the bucket; for a public bucket set GOOGLE_SKIP_SIGNATURE=true.",
    "file": "",
}
_NO_KEYS = ("169.254.169.254", "fd00:ec2::254", "metadata.google.internal", "/computeMetadata/", "/latest/api/token")


class MissingObjectError(LocationError):
    """One object does not exist, while its bucket does as far as can be told."""


@dataclass(frozen=True)
class Answer:
    """What can be told about a failed request without repeating the server's text.

    Args:
        status: HTTP status; None when no answer came.
        code: the S3 error code; empty if none was given.
    """

    status: int | None
    code: str

    def __str__(self) -> str:
        if self.status is None:
            return "no answer (connection failed or broke off)"
        return f"HTTP {self.status}" + (f" {self.code}" if self.code else "")


def read_answer(error: BaseException) -> Answer:
    """HTTP status and S3 error code of an obstore error."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    return Answer(int(status[1]) if status else None, code[1] if code else "")


def refusal_of(error: Exception, location: Location, endpoint: str | None) -> LocationError | None:
    """The error a user should see if trying again is pointless; None if it may help.

    Args:
        error: what obstore raised.
        location: the object or folder asked for.
        endpoint: the server, for the text; None is the provider's own.
    """
    answer = read_answer(error)
    at = f" at {endpoint}" if endpoint else ""
    server = " and s3.endpoint" if location.scheme == "s3" else ""
    if any(sign in str(error) for sign in _NO_KEYS):
        return LocationError(f"{location}: no credentials were found. {_KEYS_REMEDY[location.scheme]}")
    if answer.code == "NoSuchBucket":
        return LocationError(
            f"{location}: there is no bucket {location.bucket!r}{at} ({answer}). Check the name{server}."
        )
    if isinstance(error, FileNotFoundError) or answer.status == 404:
        return MissingObjectError(f"{location}: there is no such object{at} ({answer}). Check bucket and key{server}.")
    if answer.code in _WRONG_REGION or answer.status in (301, 307) or "configured region" in str(error):
        return LocationError(
            f"{location}: the bucket lies in another region ({answer}). Set s3.region or AWS_REGION to its region."
        )
    if answer.status in (401, 403) or answer.code in _WRONG_KEYS:
        return LocationError(f"{location}: access was refused{at} ({answer}). {_KEYS_REMEDY[location.scheme]}")
    if answer.status is not None and 400 <= answer.status < 500 and answer.status not in _RETRIED_STATUS:
        return LocationError(f"{location}: the server refused the request{at} ({answer}). Check the key{server}.")
    return None
