#!/bin/sh
# rustdoc with the options that are not stable. For it alone: build scripts that find them allowed make something else of
# their crates, and all would be compiled a second time.
RUSTC_BOOTSTRAP=1 exec rustdoc "$@"
