#!/bin/sh
# Answers what build scripts usually ask git. The sources in this container have no .git, and ci only provides the SHA and the time of
# the commit. Everything else is left to the git of the container, if there is a repository, or is refused.
sources=@sources@ sha=@sha@ dirty=@dirty@
unix=@unix@ strict=@strict@ iso="@iso@" day=@day@ plain="@plain@"

refuse() {
  echo "fatal: ci cannot answer \`git $1\`: there is no .git in this container, and build.commit only provides the commit's SHA and time" >&2
  exit 128
}
abbreviated() {
  case $1 in '' | *[!0-9]*) refuse "--short=$1" ;; esac
  if [ "$1" -lt 4 ]; then set -- 4; fi
  printf "%.$1s" "$sha"
}
commit_only() { case $1 in HEAD | @ | "HEAD^{commit}" | HEAD^0 | "$sha") ;; *) refuse "$2 $1" ;; esac; }

rev_parse() {
  ref= length=
  [ $# -gt 0 ] || refuse rev-parse
  for word; do
    case $word in
      --verify | -q | --quiet | --symbolic-full-name | --end-of-options) ;;
      --short) length=7 ;;
      --short=*) length=${word#*=} ;;
      --abbrev-ref | --abbrev-ref=*) ref=yes ;;
      --is-inside-work-tree) echo true ;;
      --is-bare-repository | --is-inside-git-dir) echo false ;;
      --show-toplevel) echo "$sources" ;;
      # Nothing is there, so that nothing can be read from it.
      --git-dir | --absolute-git-dir | --git-common-dir) echo "$sources/.git" ;;
      *)
        commit_only "$word" rev-parse
        if [ -n "$ref" ]; then echo HEAD
        elif [ -n "$length" ]; then echo "$(abbreviated "$length")"
        else echo "$sha"
        fi
        ;;
    esac
  done
}

describe() {
  always= mark= length=7
  while [ $# -gt 0 ]; do
    case $1 in
      --always) always=yes ;;
      --dirty | --broken) mark=-dirty ;;
      --dirty=* | --broken=*) mark=${1#*=} ;;
      --abbrev=*) length=${1#*=} ;;
      --tags | --all | --long | --first-parent | --candidates=* | --match=* | --exclude=*) ;;
      --match | --exclude) shift ;;
      *) commit_only "$1" describe ;;
    esac
    shift
  done
  [ -n "$always" ] || refuse "describe without --always"
  # Without an abbreviation, git prints the name of a tag only.
  [ "$length" != 0 ] || length=${#sha}
  if [ -z "$dirty" ]; then mark=; fi
  echo "$(abbreviated "$length")$mark"
}

log() {
  command=$1 one= format= date=$plain
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      -1 | -n1 | --max-count=1) one=yes ;;
      -n | --max-count)
        [ "${2-}" = 1 ] || refuse "$command $1 ${2-}"
        one=yes
        shift
        ;;
      -s | -q | --quiet | --no-patch) if [ "$command" = show ]; then one=yes; fi ;;
      --format=* | --pretty=*)
        format=${1#*=}
        format=${format#format:}
        format=${format#tformat:}
        ;;
      --date=short) date=$day ;;
      --date=iso | --date=iso8601) date=$iso ;;
      --date=iso-strict | --date=iso8601-strict) date=$strict ;;
      --date=unix) date=$unix ;;
      --date=raw) date="$unix +0000" ;;
      --no-show-signature | --no-color | --color=never | --no-decorate | --no-notes | --) ;;
      *) commit_only "$1" "$command" ;;
    esac
    shift
  done
  [ -n "$one" ] || refuse "$command without -1"
  case $format in *%*) ;; *) refuse "$command with this format" ;; esac
  text=$(printf %s "$format" | sed "s/%H/$sha/g; s/%h/$(abbreviated 7)/g; s/%ct/$unix/g; s/%cI/$strict/g; s/%ci/$iso/g; s/%cs/$day/g; s/%cd/$date/g")
  case $text in *%*) refuse "$command --format=$format" ;; esac
  echo "$text"
}

status() {
  porcelain=
  for word; do
    case $word in
      --porcelain | --porcelain=v1 | --porcelain=1 | -s | --short) porcelain=yes ;;
      -uno | -uall | -unormal | --untracked-files | --untracked-files=* | --ignore-submodules | --ignore-submodules=* | -- | .) ;;
      *) refuse "status $word" ;;
    esac
  done
  [ -n "$porcelain" ] || refuse "status without --porcelain"
  if [ -n "$dirty" ]; then echo " M ."; fi
}

diff() {
  command=$1 quiet=
  shift
  for word; do
    case $word in
      --quiet | --exit-code) quiet=yes ;;
      --cached | --staged | --no-ext-diff | --ignore-submodules | --) ;;
      *) commit_only "$word" "$command" ;;
    esac
  done
  [ -n "$quiet" ] || refuse "$command without --quiet"
  [ -z "$dirty" ]
}

dir=.
answer() {
  case ${1-} in
    rev-parse | describe | status)
      command=$(echo "$1" | tr - _)
      shift
      "$command" "$@"
      ;;
    log | show) log "$@" ;;
    diff | diff-index) diff "$@" ;;
    rev-list)
      case "$2 ${3-} ${4-}" in
        "-1 HEAD " | "-n 1 HEAD" | "--max-count=1 HEAD ") echo "$sha" ;;
        *) refuse "$*" ;;
      esac
      ;;
    version | --version | -v) echo "git version 2.0.0.ci" ;;
    *) refuse "$*" ;;
  esac
}
options() {
  while :; do
    case ${1-} in
      -C | -c)
        [ $# -ge 2 ] || refuse "$1"
        if [ "$1" = -C ]; then case $2 in /*) dir=$2 ;; *) dir=$dir/$2 ;; esac; fi
        shift 2
        ;;
      --no-pager | -P | --no-optional-locks | --no-replace-objects) shift ;;
      *) break ;;
    esac
  done
  here=$(cd "$dir" && pwd -P)/ || exit 128
  real=@real@
  if [ -x "$real" ]; then
    case $here in "$sources"/*) ;; *) return 1 ;; esac
    # A repository that a test has created.
    if [ -n "${GIT_DIR-}" ] || "$real" -C "$dir" rev-parse --git-dir >/dev/null 2>&1; then return 1; fi
  fi
  answer "$@"
  exit
}
options "$@" || exec "$real" "$@"
