# Run by the old package after the new one is in place, too; that is an upgrade.
if [ "$1" = 0 ]; then before_remove; fi
