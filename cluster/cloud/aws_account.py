"""One account of AWS as this machine's credentials open it: clients, who it is, and AWS's errors in our words.

The one file that imports botocore, which the base install has (s3fs brings it). Credentials, profiles, regions and
endpoints are found where AWS's own tools find them: the environment, ~/.aws/credentials, ~/.aws/config, roles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cluster.errors import CloudError, NoCredentials

T = TypeVar("T")
DEFAULT_REGION: Final = "us-east-1"
_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure"})
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "RequestExpired",
                             "UnrecognizedClientException", "SignatureDoesNotMatch"})  # fmt: skip
HOW_TO_SIGN_IN: Final = "Set them with `aws configure`, or export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."


@dataclass
class AwsAccount:
    """Makes clients, each once. Asking for one asks nobody; the first call does.

    Attributes:
        max_attempts: tries of one call, where AWS does not answer or is too busy.
    """

    max_attempts: int = 3
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)
    _session: Any = None

    def client(self, service: str, region: str = DEFAULT_REGION) -> Any:
        """A botocore client; short timeouts.

        Raises:
            CloudError: AWS's settings on this machine cannot be read.
        """
        if (service, region) not in self._clients:
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
            from botocore.session import Session

            config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": self.max_attempts})
            try:
                self._session = self._session or Session()
                self._clients[service, region] = self._session.create_client(
                    service, region_name=region, config=config
                )  # fmt: skip
            except BotoCoreError as exc:
                raise CloudError(f"AWS's settings on this machine cannot be used: {exc} {HOW_TO_SIGN_IN}") from exc
        return self._clients[service, region]

    def identity(self) -> str:
        """The account's number.

        Raises:
            NoCredentials, CloudError: nobody is signed in, or AWS does not answer.
        """
        answer = self.call("asking who is signed in", lambda: self.client("sts").get_caller_identity())
        return str(answer["Account"])

    def call(self, what: str, act: Callable[[], T], *, absent: tuple[str, ...] = (), default: T | None = None) -> T:
        """Do something with a client, and turn what goes wrong into words.

        Args:
            what: what is done, for the words: "listing machines in us-east-1".
            absent: AWS's error codes that mean "there is no such thing", for which `default` is the answer.

        Raises:
            NoCredentials: none were found, or they are not good any more.
            CloudError: anything else; `code` is AWS's own.
        """
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            return act()
        except (NoCredentialsError, PartialCredentialsError) as exc:
            raise NoCredentials(f"AWS wants credentials for {what}, and none were found. {HOW_TO_SIGN_IN}") from exc
        except ClientError as exc:
            code = str(exc.response.get("Error", {}).get("Code", ""))
            if code in absent and default is not None:
                return default
            raise _in_words(what, code, exc.response) from exc
        except BotoCoreError as exc:
            raise CloudError(f"AWS did not answer {what}: {exc}") from exc


def _in_words(what: str, code: str, response: Mapping[str, Any]) -> CloudError:
    said = str(response.get("Error", {}).get("Message", "")) or code
    if code in _EXPIRED:
        return NoCredentials(f"AWS does not take these credentials for {what} ({code}). {HOW_TO_SIGN_IN}", code=code)
    if code in _DENIED:
        words = f"AWS does not allow {what} ({code}): {said[:300]} docs/CLOUDS.md lists the permissions."
        return CloudError(words, code=code)
    return CloudError(f"AWS refused {what} ({code}): {said[:300]}", code=code)
