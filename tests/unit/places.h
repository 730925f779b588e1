/* Places to die at: a function that the linker wraps (-Wl,--wrap=FUNCTION) is called with a place before it and one behind it.
 * Who includes this says what happens there: DIE_AT(text), of which the text is "before FUNCTION" or "after FUNCTION". */
#ifndef DP_TESTS_PLACES_H
#define DP_TESTS_PLACES_H

#define PLACE(type, function, parameters, arguments)                                                                             \
	extern type __real_##function parameters;                                                                                \
	type __wrap_##function parameters;                                                                                       \
	type __wrap_##function parameters                                                                                        \
	{                                                                                                                        \
		DIE_AT("before " #function);                                                                                     \
		type result = __real_##function arguments;                                                                       \
		DIE_AT("after " #function);                                                                                      \
		return result;                                                                                                   \
	}

#define PLACE_VOID(function, parameters, arguments)                                                                              \
	extern void __real_##function parameters;                                                                                \
	void __wrap_##function parameters;                                                                                       \
	void __wrap_##function parameters                                                                                        \
	{                                                                                                                        \
		DIE_AT("before " #function);                                                                                     \
		__real_##function arguments;                                                                                     \
		DIE_AT("after " #function);                                                                                      \
	}

#endif
