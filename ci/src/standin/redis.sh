#!/bin/sh
# Starts Redis as its released image does: on all addresses, without a password.
set -eu

exec setpriv --reuid redis --regid redis --clear-groups redis-server --bind 0.0.0.0 --protected-mode no --save '' --dir /tmp
