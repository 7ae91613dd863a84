"""The glue for other libraries' models and loops; import the module of the library that is used."""
