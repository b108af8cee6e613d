# Never in the middle of an upgrade.
if [ "$1" = remove ]; then before_remove; fi
