"""From a ranking to a smaller model: the solver makes a plan, surgery applies it, recovery mends it."""
