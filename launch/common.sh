# shellcheck shell=bash
# Sourced by the launchers. FLAGS holds the arguments for the program. With --dry-run, `run` prints
# each command instead of running it, quoted so that a shell parses it into the same words.

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

# Quotes words for a shell. ${x@Q} is missing from macOS's bash, and printf %q is hard to read.
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

# Bash evaluates what stands in an arithmetic expression, so only digits may.
check_numbers() {
  local name
  for name in "$@"; do
    case ${!name} in
      '' | *[!0-9]* | 0?*) die "$name=${!name}: must be a whole number" ;;
    esac
  done
}

# Names of cloud resources go into a manifest, where blanks and quotes would begin something else.
check_names() {
  local name
  for name in "$@"; do
    case ${!name} in
      '' | [!A-Za-z0-9]* | *[!A-Za-z0-9_./:@-]*)
        die "$name=$(words "${!name}"): use letters, digits and _./:@-; start with one of the first two"
        ;;
    esac
  done
}

# A run id names cloud resources, so it is limited to their characters.
check_run_id() {
  case $RUN_ID in
    [!a-z]* | *[!a-z0-9-]* | *-)
      die "RUN_ID=$RUN_ID: use a-z, 0-9 and -; start with a letter, do not end with -"
      ;;
  esac
  [ "${#RUN_ID}" -le 40 ] || die "RUN_ID=$RUN_ID: at most 40 characters"
}

# A missing config would be noticed after the queue. An absolute path is one of the hosts, such as in
# the bucket.
check_config() {
  case $CONFIG in /*) return 0 ;; esac
  [ -f "$CONFIG" ] || die "CONFIG=$CONFIG: no such file in $PWD"
}

# Whether the last commit has the config as it is.
is_committed() {
  case $CONFIG in /*) return 0 ;; esac
  git cat-file -e "HEAD:./$CONFIG" 2> /dev/null && git diff --quiet HEAD -- "$CONFIG"
}
