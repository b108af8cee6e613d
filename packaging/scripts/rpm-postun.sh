if [ "$1" = 0 ]; then after_remove; fi
