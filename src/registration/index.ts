export {startAddressWatch} from './address-watch.ts';
export {limitReconnects} from './allowance.ts';
export {startCopyCheck} from './copy-check.ts';
export type {DirectRegistration, Wish} from './direct.ts';
export type {EntryFinding, EntryProblem} from './entry-finding.ts';
export {isOtherMachine, keepMachine, lookAtMachine, type MachineMarks} from './machine.ts';
export {type OwnInbound, type OwnInboundStatus, startOwnInbound} from './own-inbound.ts';
export {
	type Registration,
	type RegistrationDeps,
	type RegistrationState,
	type RegistrationStatus,
	startRegistration,
	workloadEntryName,
} from './registration.ts';
export {type SelfCheck, startSelfCheck} from './self-check.ts';
