# shellcheck shell=bash
# Sourced by the launchers. FLAGS: the arguments that go on to the program. With --dry-run `run`
# prints commands instead of running them, quoted so that a shell reads back the same words.

DRY_RUN=
FLAGS=()
for arg in "$@"; do
  case $arg in
    --dry-run) DRY_RUN=1 ;;
    --help | -h)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) FLAGS+=("$arg") ;;
  esac
done

say() { echo "$(basename "$0"): $*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# Words as a shell reads them. Not ${x@Q}, which macOS's bash does not know, nor printf %q, whose
# backslashes nobody can read.
words() {
  local word space=
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

run() {
  if [ -n "$DRY_RUN" ]; then
    words "$@"
    echo
  else
    "$@"
  fi
}

# A run id names cloud resources, so it has their alphabet.
check_run_id() {
  case $RUN_ID in
    [!a-z]* | *[!a-z0-9-]* | *-) die "RUN_ID=$RUN_ID: a-z, 0-9 and -, from a letter to no dash" ;;
  esac
  [ "${#RUN_ID}" -le 40 ] || die "RUN_ID=$RUN_ID: at most 40 characters"
}
