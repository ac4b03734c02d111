"""What each tab does, without the page: values in, numbers and HTML out."""
