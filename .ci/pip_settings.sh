# Sourced, not run: hands pip's own settings on to uv, which does not read them.
# $1 is a Python with pip. A machine that serves wheels from a folder (a CPU build of torch, say) says so to pip,
# by PIP_FIND_LINKS or pip.conf; without this, uv would fetch torch together with its CUDA libraries.

pip_setting() { # $1 python, $2 key such as find-links
  local from_env="PIP_$(printf '%s' "$2" | tr 'a-z-' 'A-Z_')"
  if [ -n "${!from_env:-}" ]; then printf '%s' "${!from_env}"; return; fi
  "$1" -m pip config get "global.$2" 2>/dev/null || true
}

words_to_list() { tr -s ' \n' '  ' | sed 's/^ *//; s/ *$//; s/ /,/g'; }

use_pip_settings() { # $1 python
  local links index cert
  links=$(pip_setting "$1" find-links | words_to_list)
  index=$(pip_setting "$1" index-url)
  cert=$(pip_setting "$1" cert)
  if [ -n "$links" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"; fi
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
  if [ -n "$cert" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"; fi
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
  # uv's cache is often on another disk than the checkout; a copy is then what it falls back to, with a warning.
  export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
}
