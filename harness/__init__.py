"""The judge: prunes models by any registered method, measures what is left, keeps records and compares them."""
