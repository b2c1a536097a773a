"""Architecture search: what networks there are to try, what is measured of one, what it is worth, which is next."""
