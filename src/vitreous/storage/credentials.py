"""Endpoint, region and keys as the AWS tools find them: option, environment, then the AWS profile files.

obstore itself reads the environment, web-identity tokens, container and instance credentials; it does not read
``~/.aws/credentials`` and ``~/.aws/config``, so those two are read here. Values of keys never reach an error text.
"""

import configparser
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

from vitreous.core.errors import LocationError
from vitreous.storage.location import S3Options

_REREAD = timedelta(minutes=5)  # tools that rotate keys rewrite the file; a long run must notice
_OWN_PROVIDERS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_OTHER_SOURCES = ("credential_process", "sso_session", "sso_start_url", "role_arn", "login_session")


class Keys(TypedDict):
    """What obstore asks a credential provider for."""

    access_key_id: str
    secret_access_key: str
    token: str | None
    expires_at: datetime | None


@dataclass(frozen=True)
class S3Access:
    """How to reach a bucket, resolved.

    Args:
        endpoint: None is AWS itself.
        region: None leaves the default.
        is_anonymous: requests are not signed.
        provider: gives the keys of an AWS profile; None leaves keys to obstore (environment, machine).
    """

    endpoint: str | None
    region: str | None
    is_anonymous: bool
    provider: Callable[[], Keys] | None


def resolve_s3_access(options: S3Options, environment: Mapping[str, str] = os.environ) -> S3Access:
    """Bring option, environment and AWS profile into one answer.

    Raises:
        LocationError: the endpoint is no URL or carries a password; the profile asked for does not exist, or
            finds its keys in a way that only the AWS command line can follow.
    """
    is_anonymous = any(_is_true(environment, name) for name in ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"))
    profile = _read_profile(environment)
    endpoint = options.endpoint or _first(
        environment, "S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
    )
    endpoint = endpoint or profile.get("endpoint_url")
    region = options.region or _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
    has_own = bool(environment.get("AWS_ACCESS_KEY_ID")) or any(environment.get(name) for name in _OWN_PROVIDERS)
    provider = None
    if not is_anonymous and not has_own and profile:
        provider = _profile_provider(profile, environment)
    return S3Access(_checked_endpoint(endpoint), region, is_anonymous, provider)


def describe_source(options: S3Options, environment: Mapping[str, str] = os.environ) -> str:
    """Where the keys of S3 requests come from, in words; never what they are.

    Raises:
        LocationError: as :func:`resolve_s3_access`.

    >>> describe_source(S3Options(), {"AWS_NO_SIGN_REQUEST": "yes", "HOME": "/nowhere"})
    'nobody: requests are not signed'
    """
    access = resolve_s3_access(options, environment)
    if access.is_anonymous:
        return "nobody: requests are not signed"
    if environment.get("AWS_ACCESS_KEY_ID"):
        return "the environment (AWS_ACCESS_KEY_ID)"
    if access.provider is not None:
        return "an AWS profile"
    named = [name for name in _OWN_PROVIDERS if environment.get(name)]
    return named[0] if named else "the machine, if it has a role: neither environment nor profile has keys"


def _checked_endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme.lower() not in ("http", "https") or not rest.strip("/"):
        raise LocationError(f"s3.endpoint must be http://host[:port] or https://host[:port]; got {endpoint!r}.")
    if "@" in rest.split("/")[0]:
        raise LocationError(
            "s3.endpoint carries a user name or password; give keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return endpoint.rstrip("/")


def _read_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of the chosen profile out of both AWS files; empty if there are none and none was asked for."""
    asked = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    name = asked or "default"
    home = Path(environment.get("HOME") or Path.home())
    keys_file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials").expanduser()
    config_file = Path(environment.get("AWS_CONFIG_FILE") or home / ".aws" / "config").expanduser()
    sections = (
        (config_file, name if name == "default" else f"profile {name}"),
        (keys_file, name),  # second: keys of the credentials file win, as in the AWS tools
    )
    settings: dict[str, str] = {}
    for path, section in sections:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            raise LocationError(
                f"{path}: cannot be read as an AWS profile file ({type(error).__name__}); mend or remove it."
            ) from None  # the parser's own text quotes the line, which may be a key
        if parser.has_section(section):
            settings |= dict(parser.items(section))
    if asked and not settings:
        raise LocationError(
            f"AWS_PROFILE is {asked!r}, but neither {keys_file} nor {config_file} has that profile; "
            f"unset AWS_PROFILE or add the profile."
        )
    return settings


def _profile_provider(profile: Mapping[str, str], environment: Mapping[str, str]) -> Callable[[], Keys] | None:
    if not profile.get("aws_access_key_id") or not profile.get("aws_secret_access_key"):
        if source := next((name for name in _OTHER_SOURCES if name in profile), None):
            raise LocationError(
                f"the AWS profile {environment.get('AWS_PROFILE') or 'default'!r} finds its keys by {source}, which "
                f'is not supported here. Run: eval "$(aws configure export-credentials --format env)"'
            )
        return None

    def provide() -> Keys:
        now = _read_profile(environment)
        return Keys(
            access_key_id=now["aws_access_key_id"],
            secret_access_key=now["aws_secret_access_key"],
            token=now.get("aws_session_token"),
            expires_at=datetime.now(UTC) + _REREAD,
        )

    return provide


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise LocationError(f"{name} must be true or false; got {value!r}.")
