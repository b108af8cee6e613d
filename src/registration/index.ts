export {
	type Registration,
	type RegistrationDeps,
	type RegistrationState,
	type RegistrationStatus,
	startRegistration,
	workloadEntryName,
} from './registration.ts';
