"""The environment a local node starts with: what programs need to run, the job's own secrets, and nothing else.

A cloud's machine does not see the laptop's variables either; a job that works only because of one of them should fail
here, where it is cheap. Secrets travel by name: the job lists them, their values are in no file and no event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Where programs and libraries are, how text is encoded, how the outside is reached.
_NAMES = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
        "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE",
    }
)  # fmt: skip
_PREFIXES = ("LC_", "ALPACA_JOBS_", "NCCL_", "GLOO_", "OMP_", "MKL_", "CUDA_", "TORCH_")
_STORE_PREFIXES = {
    "s3": ("AWS_", "FSSPEC_S3"),
    "gs": ("GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_HOST", "CLOUDSDK_"),
    "az": ("AZURE_", "ADLFS_"),
    "abfs": ("AZURE_", "ADLFS_"),
}
_SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_CREDENTIALS")


def node_environ(environ: Mapping[str, str], *, store_uri: str, secrets: Sequence[str]) -> dict[str, str]:
    """Choose what a node inherits.

    Args:
        environ: the launcher's environment.
        store_uri: its scheme says which credentials the node needs to reach its state.
        secrets: names that the job lists; those that are not set are left out.
    """
    store_prefixes = _STORE_PREFIXES.get(store_uri.partition("://")[0], ())
    chosen = {}
    for name, value in environ.items():
        is_common = (name in _NAMES or name.startswith(_PREFIXES)) and not name.upper().endswith(_SECRET_ENDINGS)
        if is_common or name.startswith(store_prefixes) or name in secrets:
            chosen[name] = value
    return chosen
