// The importable shell of a kernel library. Kernels register themselves with torch's dispatcher when it is loaded, so
// the module has nothing in it.

#include <Python.h>

#define VPGFAST_STRING_(name) #name
#define VPGFAST_STRING(name) VPGFAST_STRING_(name)
#define VPGFAST_INIT_(name) PyInit_##name
#define VPGFAST_INIT(name) VPGFAST_INIT_(name)

PyMODINIT_FUNC VPGFAST_INIT(VPGFAST_MODULE)() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, VPGFAST_STRING(VPGFAST_MODULE), nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
