export {type Dns, type DnsDeps, type DnsStatus, startDns} from './dns.ts';
export type {ListenerState} from './listeners.ts';
export type {Lookup, Question} from './lookup.ts';
export {type NameInfo, type NameTable, parseNameTable} from './name-table.ts';
